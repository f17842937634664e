"""From files to batches on the devices; checks and copies of data sets."""
