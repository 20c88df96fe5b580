{% include cookiecutter.environment ~ "/fleet_run.py" ignore missing %}
