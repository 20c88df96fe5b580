"""Write each log record as one line of JSON, with the fields of a fleet's tenants."""

import json
import logging

FIELDS = ("tenant", "revision", "outcome", "seconds")


class JSONLines(logging.Formatter):
    """A formatter for the ini file; json quotes whatever a tenant is called."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as an object of JSON."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in FIELDS if name in vars(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
