-- What is stored, and where a message can be.
--
--   body      one row per message, written once by the send: envelope, body, `seq` (the order of sends). It is also the memory of the id.
--   ready, delayed, blocked, lease, dead, done    the ownership rows. A message has exactly one, in exactly one of them; it moves by a DELETE here and an
--             INSERT there in one transaction. They are narrow, so that a hand-out rewrites no body, and what vacuum cannot reclaim is small.
--   lane      one row per FIFO group: its lock, and so the order of its sends       asked   cancellations that a worker has not carried out yet
--   delta     counters, insert-only; `tally` is their sum up to the last roll-up    stalled  (queue, feed): stands still until the feed is below low water
--
-- Numbers  instants are whole milliseconds since 1970 on this server's clock, with the ratchet of `clock`.
-- Flags    1 in a group, 2 in a run, 4 part of a gather: what an ownership row must know so that the end of a plain message needs no look at its body.
-- Common   since: ready at (of a delayed one: will be); rank: its place among the ready; expires: only until the first hand-out; why, error: of the last change.

CREATE TABLE beltline.meta(key text PRIMARY KEY, value text NOT NULL);
CREATE SEQUENCE beltline.place;
CREATE SEQUENCE beltline.hand_out;
CREATE TABLE beltline.clock(one boolean PRIMARY KEY DEFAULT true CHECK (one), last bigint NOT NULL, skew bigint NOT NULL,
  seal smallint NOT NULL DEFAULT 0);   -- Level of engines/moving.py: which verbs a move forbids. Here, because every verb reads this row anyway
CREATE TABLE beltline.name(n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL UNIQUE);   -- of workers

CREATE TABLE beltline.queue(
  n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, spec bytea NOT NULL, paused boolean NOT NULL DEFAULT false,
  max_backlog float8 NOT NULL, high_water float8 NOT NULL, low_water float8 NOT NULL, ageing_ms bigint NOT NULL, max_deliveries int NOT NULL,
  skip_dead boolean NOT NULL, feeds boolean NOT NULL);
CREATE TABLE beltline.feed(queue int NOT NULL, feed int NOT NULL, fan_out int NOT NULL, PRIMARY KEY(queue, feed));
CREATE INDEX feed_of ON beltline.feed(feed);
CREATE TABLE beltline.stalled(queue int NOT NULL, feed int NOT NULL, PRIMARY KEY(queue, feed));

CREATE TABLE beltline.body(
  id uuid PRIMARY KEY, seq bigint NOT NULL, sent bigint NOT NULL, queue int NOT NULL, prio smallint NOT NULL, flags smallint NOT NULL,   -- queue, due, expires: as sent
  due bigint, expires bigint, part int, run uuid, gather uuid, task text NOT NULL, group_key bytea, head bytea, body bytea NOT NULL);
CREATE UNIQUE INDEX body_seq ON beltline.body(seq);
CREATE INDEX body_run ON beltline.body(run, seq) WHERE run IS NOT NULL;
CREATE TABLE beltline.known(id uuid PRIMARY KEY, ended bigint NOT NULL);   -- ids whose history was dropped before their 24 h were over
CREATE INDEX known_ended ON beltline.known(ended);

CREATE TABLE beltline.ready(
  rank bigint NOT NULL, seq bigint NOT NULL, since bigint NOT NULL, id uuid NOT NULL, queue int NOT NULL,
  epoch int NOT NULL, failed int NOT NULL, lost int NOT NULL, flags smallint NOT NULL, expires bigint, why text, error text,
  PRIMARY KEY(queue, rank, seq));
CREATE UNIQUE INDEX ready_id ON beltline.ready(id);
CREATE INDEX ready_expires ON beltline.ready(queue, expires) WHERE expires IS NOT NULL;

CREATE TABLE beltline.delayed(
  rank bigint NOT NULL, seq bigint NOT NULL, since bigint NOT NULL, id uuid NOT NULL, queue int NOT NULL,
  epoch int NOT NULL, failed int NOT NULL, lost int NOT NULL, flags smallint NOT NULL, expires bigint, why text, error text,
  PRIMARY KEY(queue, since, seq));
CREATE UNIQUE INDEX delayed_id ON beltline.delayed(id);
CREATE INDEX delayed_expires ON beltline.delayed(queue, expires) WHERE expires IS NOT NULL;

CREATE TABLE beltline.blocked(
  rank bigint NOT NULL, seq bigint NOT NULL, since bigint NOT NULL, id uuid NOT NULL, queue int NOT NULL,
  epoch int NOT NULL, failed int NOT NULL, lost int NOT NULL, flags smallint NOT NULL, expires bigint, why text, error text,
  was smallint NOT NULL,   -- 0 delayed, 1 ready: what it is counted as
  group_key bytea NOT NULL,
  PRIMARY KEY(queue, group_key, seq));
CREATE UNIQUE INDEX blocked_id ON beltline.blocked(id);
CREATE INDEX blocked_since ON beltline.blocked(queue, was, since);
CREATE INDEX blocked_expires ON beltline.blocked(queue, expires) WHERE expires IS NOT NULL;
CREATE TABLE beltline.lane(queue int NOT NULL, group_key bytea NOT NULL, head uuid, PRIMARY KEY(queue, group_key));   -- head: the one that stands in the queue

CREATE TABLE beltline.lease(
  id uuid PRIMARY KEY, due bigint NOT NULL, rank bigint NOT NULL, seq bigint NOT NULL, since bigint NOT NULL, started bigint NOT NULL, queue int NOT NULL,
  epoch int NOT NULL, failed int NOT NULL, lost int NOT NULL, worker int, flags smallint NOT NULL, error text);
CREATE INDEX lease_due ON beltline.lease(queue, due);
CREATE TABLE beltline.asked(id uuid PRIMARY KEY, reason text NOT NULL);
CREATE TABLE beltline.progress(id uuid PRIMARY KEY, value bytea NOT NULL);

CREATE TABLE beltline.dead(
  id uuid PRIMARY KEY, seq bigint NOT NULL, ended bigint NOT NULL, queue int NOT NULL, epoch int NOT NULL, failed int NOT NULL, lost int NOT NULL,
  flags smallint NOT NULL, why text, error text, group_key bytea);
CREATE INDEX dead_queue ON beltline.dead(queue, seq);
CREATE INDEX dead_lane ON beltline.dead(queue, group_key, seq) WHERE group_key IS NOT NULL;

CREATE TABLE beltline.done(
  id uuid PRIMARY KEY, ended bigint NOT NULL, started bigint, seq bigint NOT NULL, result_until bigint, queue int NOT NULL, epoch int NOT NULL, failed int NOT NULL, lost int NOT NULL,
  worker int, ran float4, outcome smallint NOT NULL,   -- 1 succeeded, 2 cancelled, 3 expired
  flags smallint NOT NULL, why text, error text, result bytea);
CREATE INDEX done_ended ON beltline.done(ended);
CREATE INDEX done_result ON beltline.done(result_until) WHERE result IS NOT NULL;
CREATE TABLE beltline.attempt(
  n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id uuid NOT NULL, started bigint, ended bigint NOT NULL, epoch int NOT NULL, worker int, ran float8 NOT NULL,
  outcome text NOT NULL, note text NOT NULL, failure bytea);
CREATE INDEX attempt_id ON beltline.attempt(id, n);

CREATE TABLE beltline.dedup(queue int NOT NULL, key bytea NOT NULL, id uuid NOT NULL, until bigint NOT NULL, PRIMARY KEY(queue, key));
CREATE INDEX dedup_until ON beltline.dedup(until);

-- state: 0 running, 1 done, 2 dead, 3 failed, 4 cancelled; counted: the state run_delta counts it under (-1: not yet); last: outcome of its last message, 0 = a gather went on from there
CREATE TABLE beltline.run(
  id uuid PRIMARY KEY, entered bigint NOT NULL, ended bigint NOT NULL, result_until bigint, open int NOT NULL, dead int NOT NULL,
  state smallint NOT NULL, counted smallint NOT NULL, last smallint NOT NULL, touched boolean NOT NULL, chain text NOT NULL, why text, failure bytea, result bytea);
CREATE INDEX run_chain ON beltline.run(chain, id);
CREATE INDEX run_ended ON beltline.run(ended) WHERE ended > 0;
CREATE INDEX run_result ON beltline.run(result_until) WHERE result IS NOT NULL;
CREATE TABLE beltline.run_delta(chain text NOT NULL, state smallint NOT NULL, count bigint NOT NULL);
CREATE INDEX run_delta_chain ON beltline.run_delta(chain);
CREATE TABLE beltline.run_tally(chain text NOT NULL, state smallint NOT NULL, count bigint NOT NULL, PRIMARY KEY(chain, state));

-- A message on its way into the store. ord: its place in the batch, or that of the settlement it follows. due: ready at, absolute; delay, expires: from now on; NULL = none.
-- gather, part: the innermost gather.
CREATE TYPE beltline.item AS (
  ord int, id uuid, queue int, prio smallint, due bigint, delay bigint, expires bigint, dedup_ms bigint, part int, run uuid, gather uuid,
  task text, chain text, group_key bytea, dedup bytea, head bytea, body bytea);
-- An ownership row of any state (0 delayed, 1 ready, 2 leased, 3 done, 4 dead) as the functions pass it on; due, started, worker: of a leased one; blocked: behind its group's head.
CREATE TYPE beltline.fact AS (
  state smallint, blocked boolean, queue int, seq bigint, id uuid, rank bigint, since bigint, epoch int, failed int, lost int, flags smallint,
  expires bigint, why text, error text, due bigint, started bigint, worker int);

CREATE TYPE beltline.answer AS (code int, ord int, id uuid, text text, number float8);   -- of `send`

-- A gather on its way into the store: like a row of `gather`.
CREATE TYPE beltline.opened AS (
  ord int, id uuid, run uuid, chain text, expected int, on_dead smallint, outer_gather uuid, outer_part int, ttl bigint, data bytea, then_item beltline.item,
  prefix bytea, suffix bytea);
-- on_dead: 0 hold, 1 skip, 2 fail. then_item: what is sent when it is complete, with the list of answers between prefix and suffix as its body.
CREATE TABLE beltline.gather(
  id uuid PRIMARY KEY, run uuid NOT NULL, n bigint GENERATED ALWAYS AS IDENTITY, outer_gather uuid, ttl bigint NOT NULL, expected int NOT NULL, missing int NOT NULL,
  dead int NOT NULL, outer_part int, on_dead smallint NOT NULL, fired boolean NOT NULL, data bytea NOT NULL, then_item beltline.item, prefix bytea, suffix bytea);
CREATE INDEX gather_run ON beltline.gather(run, n);
CREATE TABLE beltline.gather_part(gather uuid NOT NULL, part int NOT NULL, dead boolean NOT NULL, value bytea, PRIMARY KEY(gather, part));

CREATE TABLE beltline.delta(
  queue int NOT NULL, ready int NOT NULL, delayed int NOT NULL, leased int NOT NULL, dead int NOT NULL, done int NOT NULL, parked int NOT NULL);
CREATE INDEX delta_queue ON beltline.delta(queue);
CREATE TABLE beltline.tally(
  queue int PRIMARY KEY, ready bigint NOT NULL, delayed bigint NOT NULL, leased bigint NOT NULL, dead bigint NOT NULL, done bigint NOT NULL, parked bigint NOT NULL);
CREATE TABLE beltline.worker(id text PRIMARY KEY, seen bigint NOT NULL, data bytea NOT NULL);

INSERT INTO beltline.clock(last, skew) VALUES (0, 0);
INSERT INTO beltline.meta(key, value) VALUES ('store', gen_random_uuid()::text);   -- which Beltline this is, wherever it is reached from

-- Through these everything passes: vacuum must not wait until a fifth of them is gone.
DO $$ DECLARE t text; BEGIN
  FOREACH t IN ARRAY ARRAY['ready', 'delayed', 'blocked', 'lease', 'asked', 'delta', 'run_delta', 'stalled'] LOOP
    EXECUTE format('ALTER TABLE beltline.%I SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0)', t);
  END LOOP;
END $$;
