"""What every stage stands on, and no result depends on: settings, files, errors, downloads, processes, the machine."""
