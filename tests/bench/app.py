"""A small JSON API, as FastAPI's users write it: what `weir-bench replay` records."""

from fastapi import FastAPI

app = FastAPI()


@app.get("/api/orders/{order}")
async def read_order(order: int, page: int = 1):
    lines = [{"sku": f"A-{number}", "name": "A thing of some kind", "quantity": number} for number in range(10)]
    return {"id": order, "page": page, "customer": {"id": 7, "name": "Ada"}, "lines": lines}
