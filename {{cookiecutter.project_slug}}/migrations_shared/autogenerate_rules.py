{% if cookiecutter.environment == "multitenant" %}
{% include "sync/autogenerate_rules.py" %}
{% endif %}
