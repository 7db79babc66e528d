"""The MCP server: a gateway's sessions as tools, for programs that let a model run code. docs/mcp.md describes it."""
