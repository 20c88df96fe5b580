{% if cookiecutter.environment == "multitenant" %}
{% include "sync/migration_settings.py" %}
{% endif %}
