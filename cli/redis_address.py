"""Which Redis a command looks into: the one of ``REDIS_URL``, else the one that ``bin/serve`` started."""

from configuration.private_redis import data_folder, socket_path, socket_url
from settings import Settings


def redis_url(settings: Settings) -> str:
    """Return the address; that of a private Redis only where one runs, and no other was named."""
    socket = socket_path(data_folder(settings.var))
    if settings.redis_url == Settings().redis_url and socket.is_socket():
        return socket_url(socket)
    return settings.redis_url
