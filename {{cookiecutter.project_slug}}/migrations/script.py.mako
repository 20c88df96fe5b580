{% include cookiecutter.environment ~ "/script.py.mako" ignore missing %}
