{% include cookiecutter.environment ~ "/autogenerate_rules.py" ignore missing %}
