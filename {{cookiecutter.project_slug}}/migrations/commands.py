{% include cookiecutter.environment ~ "/commands.py" ignore missing %}
