"""What runs around a deployed service. It imports ``shared`` and talks to the service over HTTP only."""
