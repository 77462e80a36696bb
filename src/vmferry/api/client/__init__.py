"""The API's client, which the command line is: it starts a worker where none runs."""
