{% include cookiecutter.environment ~ "/fleet.py" ignore missing %}
