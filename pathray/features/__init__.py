"""Features of slides and images: encoders as artifacts in, H5 bags and parquet tables out. One pass over the pixels."""
