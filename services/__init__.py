"""The use cases, free of any transport: what every face calls, and the only home of each policy."""
