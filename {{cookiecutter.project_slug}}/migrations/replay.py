{% include cookiecutter.environment ~ "/replay.py" ignore missing %}
