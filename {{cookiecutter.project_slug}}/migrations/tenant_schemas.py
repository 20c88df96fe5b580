{% include cookiecutter.environment ~ "/tenant_schemas.py" ignore missing %}
