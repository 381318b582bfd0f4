"""``gunicorn wsgi:app``: the front door as a WSGI application."""

import logs
from settings import Settings
from webapp import create_app

_settings = Settings.from_env_or_exit()
logs.configure(_settings.log_level)
app = create_app(_settings)
