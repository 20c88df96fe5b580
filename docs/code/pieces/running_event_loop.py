from concurrent.futures import ThreadPoolExecutor


def run_migrations_online() -> None:
    # asyncio.run() is an error in a thread whose event loop runs. A new thread has none.
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(lambda: asyncio.run(run_async_migrations())).result()
