{% include cookiecutter.environment ~ "/event_loop.py" ignore missing %}
