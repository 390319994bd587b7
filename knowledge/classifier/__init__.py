"""What DiagnosisBot and the ADM classifier share: flags, data, training, metrics."""
