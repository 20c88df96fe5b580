"""The application with Flask-Migrate."""

from app import app, db
from flask_migrate import Migrate

Migrate(app, db)
