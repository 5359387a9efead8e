-- The size of every queue's fleet, and the log of the decisions that made it. Sizes are changed by compare-and-set on `turn`.
--
--   fleet      slots: of all workers together; decided: when, 0 = the next decision is due; state: what deciders remember; least, most: an operator's range
--   decision   MessagePack of a Decision, the newest 1,000 of each queue

CREATE TABLE beltline.fleet(
  queue int PRIMARY KEY, turn bigint NOT NULL, slots int NOT NULL, decided bigint NOT NULL, least int, most int, state bytea NOT NULL);
CREATE TABLE beltline.decision(n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, queue int NOT NULL, data bytea NOT NULL);
CREATE INDEX decision_queue ON beltline.decision(queue, n);

-- 1: written. 0: somebody else has decided on this turn. NULL: not declared.
CREATE OR REPLACE FUNCTION beltline.set_size(p_now bigint, p_queue text, p_turn bigint, p_slots int, p_state bytea, p_log bytea, p_logged int) RETURNS int
  LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE v_now bigint := beltline._now(p_now); v_n int := (SELECT n FROM beltline.queue WHERE name = p_queue);
BEGIN
  IF v_n IS NULL THEN
    RETURN NULL;
  END IF;
  INSERT INTO beltline.fleet(queue, turn, slots, decided, state) SELECT v_n, p_turn + 1, p_slots, v_now, p_state WHERE p_turn = 0 ON CONFLICT (queue) DO NOTHING;
  IF NOT FOUND THEN
    UPDATE beltline.fleet SET turn = p_turn + 1, slots = p_slots, decided = v_now, state = p_state WHERE queue = v_n AND turn = p_turn;
    IF NOT FOUND THEN
      RETURN 0;
    END IF;
  END IF;
  IF p_log IS NOT NULL THEN
    INSERT INTO beltline.decision(queue, data) VALUES (v_n, p_log);
    DELETE FROM beltline.decision WHERE queue = v_n
      AND n <= (SELECT n FROM beltline.decision WHERE queue = v_n ORDER BY n DESC LIMIT 1 OFFSET p_logged);
  END IF;
  RETURN 1;
END $$;

-- p_least, p_most NULL: the workers' own range again. False: not declared.
CREATE OR REPLACE FUNCTION beltline.set_range(p_now bigint, p_queue text, p_least int, p_most int) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE v_n int := (SELECT n FROM beltline.queue WHERE name = p_queue);
BEGIN
  PERFORM beltline._now(p_now);
  IF v_n IS NULL THEN
    RETURN false;
  END IF;
  INSERT INTO beltline.fleet(queue, turn, slots, decided, state) SELECT v_n, 0, 0, 0, ''::bytea WHERE p_least IS NOT NULL ON CONFLICT (queue) DO NOTHING;
  UPDATE beltline.fleet SET least = p_least, most = p_most, decided = 0 WHERE queue = v_n;
  RETURN true;
END $$;
