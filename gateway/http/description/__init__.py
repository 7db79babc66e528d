"""What every route takes and answers, and the OpenAPI document that follows from it."""
