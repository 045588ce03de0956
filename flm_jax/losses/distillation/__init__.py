"""The routes by which a flow is distilled into a flow map."""
