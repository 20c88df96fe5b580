{% if cookiecutter.environment == "multitenant" %}
{% include "sync/script.py.mako" %}
{% endif %}
