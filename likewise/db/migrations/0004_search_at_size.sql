-- What search needs at size: filters answered from indexes alone, facts that the text itself determines kept once a
-- content, and what maintenance knows of an index.

-- Whether the value is one of a list: `$eq` means the whole field, `$contains` one of its elements.
ALTER TABLE record_fields ADD COLUMN element boolean NOT NULL DEFAULT false;

-- With everything in the index that a filter reads, security's own column included, no row of the table is visited.
DROP INDEX record_fields_value;
DROP INDEX record_fields_number;
CREATE INDEX record_fields_value ON record_fields (collection, field, value)
    INCLUDE (content, record, tenant, element) WHERE value IS NOT NULL;
CREATE INDEX record_fields_number ON record_fields (collection, field, number)
    INCLUDE (content, record, tenant, element) WHERE number IS NOT NULL;
DROP INDEX records_parent;
DROP INDEX records_occurred_at;
CREATE INDEX records_parent ON records (collection, parent) INCLUDE (content, tenant, pk) WHERE parent IS NOT NULL;
CREATE INDEX records_status ON records (collection, status) INCLUDE (content, tenant, pk) WHERE status IS NOT NULL;
CREATE INDEX records_occurred_at ON records (collection, occurred_at) INCLUDE (content, tenant, pk)
    WHERE occurred_at IS NOT NULL;

-- The fields of a kind that the text determines: one row for each content, however many records point at it.
CREATE TABLE content_fields (
    tenant int NOT NULL,
    collection int NOT NULL,
    field text NOT NULL,
    value text,
    number float8,
    content bigint NOT NULL REFERENCES contents ON DELETE CASCADE,
    element boolean NOT NULL DEFAULT false
);
CREATE INDEX content_fields_value ON content_fields (collection, field, value) INCLUDE (content, tenant, element)
    WHERE value IS NOT NULL;
CREATE INDEX content_fields_number ON content_fields (collection, field, number) INCLUDE (content, tenant, element)
    WHERE number IS NOT NULL;
CREATE INDEX content_fields_content ON content_fields (content);
ALTER TABLE content_fields ENABLE ROW LEVEL SECURITY;
ALTER TABLE content_fields FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON content_fields TO {owner} USING (true) WITH CHECK (true);
CREATE POLICY tenant ON content_fields TO {server}
    USING (tenant = nullif(current_setting('likewise.tenant', true), '')::int);
GRANT SELECT, INSERT, DELETE ON content_fields TO {server};

-- How many rows had ever been deleted from the vectors when their index was last built.
ALTER TABLE generations ADD COLUMN index_deletes bigint NOT NULL DEFAULT 0;

-- The table of the terms goes before those of the vectors, the order in which a search comes to them.
CREATE OR REPLACE FUNCTION drop_collection(wanted int) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    of_generation int;
BEGIN
    PERFORM lock_collection(wanted);
    PERFORM 1 FROM collections WHERE id = wanted AND tenant = this_tenant() FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM 1 FROM contents WHERE collection = wanted ORDER BY pk FOR UPDATE;
    EXECUTE format('DROP TABLE terms_%s', wanted);
    FOR of_generation IN SELECT id FROM generations WHERE collection = wanted ORDER BY id LOOP
        DELETE FROM waiting WHERE generation = of_generation;
        EXECUTE format('DROP TABLE vec_%s', of_generation);
    END LOOP;
    DELETE FROM record_fields WHERE collection = wanted;
    DELETE FROM records WHERE collection = wanted;
    DELETE FROM contents WHERE collection = wanted;
    DELETE FROM collections WHERE id = wanted;
    RETURN true;
END $$;
