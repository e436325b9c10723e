"""`durable demo`: a chat with a local model, and a button that kills its server."""
