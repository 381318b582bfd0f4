"""``gunicorn wsgi:app``: the front door as a WSGI application."""

import logging

import logs
from engines.errors import ConfigError
from settings import Settings
from store.installation import PrefixTakenError
from webapp import create_app
from webapp.gunicorn.internals import APP_LOAD_ERROR

_settings = Settings.from_env_or_exit()
logs.configure(_settings.log_level)
try:
    app = create_app(_settings)
except (ConfigError, PrefixTakenError) as error:
    logging.getLogger("webapp").critical("The front door cannot start: %s", error)
    # Another worker would find the same.
    raise SystemExit(APP_LOAD_ERROR) from None
