{% include cookiecutter.environment ~ "/fleet_workers.py" ignore missing %}
