"""Other tools' models and files: MLflow stores by CID, its models come in, model cards and folders go out."""
