{% if cookiecutter.environment == "multitenant" %}
{% include "sync/env.py" %}
{% endif %}
