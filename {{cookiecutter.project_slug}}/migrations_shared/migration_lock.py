{% if cookiecutter.environment == "multitenant" %}
{% include "sync/migration_lock.py" %}
{% endif %}
