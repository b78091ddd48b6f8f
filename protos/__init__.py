"""Wire formats: the .proto files, the modules generated from them, and topic names. Imports nothing of Muster."""
