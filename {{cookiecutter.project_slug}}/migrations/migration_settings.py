{% include cookiecutter.environment ~ "/migration_settings.py" ignore missing %}
