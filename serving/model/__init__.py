"""The model: its session, what it makes of a picture, and how one follows another."""
