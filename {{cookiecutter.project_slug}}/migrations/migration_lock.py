{% include cookiecutter.environment ~ "/migration_lock.py" ignore missing %}
