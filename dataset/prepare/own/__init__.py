"""Your own images as annotation files: texts beside images, tables, webdataset tars and Parquet."""
