"""An application that upgrades its database before it serves: `uvicorn app:app`."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from migrations.commands import Migrations
from models import Book
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

# Without a handler, not even the warnings of Alembic are seen.
logging.basicConfig(level=logging.WARNING)
logging.getLogger("alembic").setLevel(logging.INFO)

engine = create_async_engine(os.environ["DATABASE_URL"])


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(lambda each: Migrations(each).upgrade())
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/books")
async def books() -> list[str]:
    async with AsyncSession(engine) as session:
        return list(await session.scalars(select(Book.title)))
