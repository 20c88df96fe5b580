{% include cookiecutter.environment ~ "/tenant_names.py" ignore missing %}
