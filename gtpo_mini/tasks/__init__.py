"""Problems and graders: offline generators, rows from files and the hub, own tasks."""
