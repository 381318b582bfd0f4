"""One request of a client: admitted, submitted, followed, resumed, cancelled, failed over."""
