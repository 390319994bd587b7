"""Commands that build the artefacts of a data set: labels, DiagnosisBot, ADM masks, knowledge base."""
