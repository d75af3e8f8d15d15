"""testcontainers (Python) starts the database of images/postgres.sh, and a program uses it.

    images/postgres.sh | vessel load
    pip install 'testcontainers[postgres]' 'psycopg[binary]' sqlalchemy pytest
    DOCKER_HOST=unix:///run/vessel/vessel.sock TESTCONTAINERS_RYUK_DISABLED=true pytest tests/compat/test_postgres.py
"""

import sqlalchemy
from testcontainers.postgres import PostgresContainer


def test_a_program_uses_a_database_of_its_own():
    # A name and a password that a shell or SQL would misread if they were not quoted everywhere.
    database = PostgresContainer("postgres:latest", driver="psycopg", username="shop", password="it's $1", dbname="goods-1")
    with database as postgres:
        engine = sqlalchemy.create_engine(postgres.get_connection_url())
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("create table item (id serial primary key, name text)"))
            connection.execute(sqlalchemy.text("insert into item (name) values ('ä'), ('b')"))
            row = connection.execute(sqlalchemy.text("select current_user, current_database(), count(*) from item")).one()
    assert tuple(row) == ("shop", "goods-1", 2)
