{% include cookiecutter.environment ~ "/env.py" ignore missing %}
