"""Parts of OpenAPI documents."""

from __future__ import annotations

from vitsplit.tasks.json_schema import Schema


def operation(
    name: str,
    summary: str,
    responses: Schema,
    *,
    parameters: list[Schema] | None = None,
    body: Schema | None = None,
    errors: tuple[int, ...] = (),
    error: str = "Error",
) -> Schema:
    """An operation of a path.

    Args:
        name: Its unique id.
        summary: One sentence.
        responses: Responses by status.
        parameters: Parameters of the query.
        body: The body of the request.
        errors: Statuses of errors, beside 500.
        error: Name of the errors' schema.
    """
    failures = {
        str(status): {"description": "An error.", "content": {"application/json": {"schema": ref(error)}}}
        for status in (*errors, 500)
    }
    found: Schema = {"operationId": name, "summary": summary, "responses": responses | failures}
    if parameters:
        found["parameters"] = parameters
    if body:
        found["requestBody"] = body
    return found


def success(content: Schema) -> Schema:
    """The response 200, from schemas by media type."""
    return {"200": {"description": "Success.", "content": {kind: {"schema": each} for kind, each in content.items()}}}


def as_json(schema: Schema) -> Schema:
    """The response 200 in JSON."""
    return success({"application/json": schema})


def binary_file() -> Schema:
    """The schema of a file's content."""
    return {"type": "string", "format": "binary"}


def ref(name: str) -> Schema:
    """A reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}
