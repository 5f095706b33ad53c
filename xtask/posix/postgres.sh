# PostgreSQL: initdb, pgbench, SIGKILL of all its processes under load, recovery, and a check of sums.
. "$TOOLS/common.sh"
root
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
[ -n "$bin" ] || skip "no PostgreSQL: apt install postgresql"
id postgres >/dev/null 2>&1 || skip "no user postgres"
[ -x "$bin/pgbench" ] || skip "no pgbench: apt install postgresql-contrib"
mkdir -p "$MOUNT/pg" && chown postgres "$MOUNT/pg"
chmod 755 "$MOUNT"; mkdir -p "$SCRATCH/sock"; chown postgres "$SCRATCH" "$SCRATCH/sock"
chmod 755 "$(dirname "$SCRATCH")" "$SCRATCH"
run() { runuser -u postgres -- "$@"; }
sql() { run psql -h "$SCRATCH/sock" -p "${PG_PORT:-19990}" -d postgres -tAc "$1"; }
start() { run "$bin/pg_ctl" -D "$MOUNT/pg/data" -w -t 120 -l "$SCRATCH/log" -o "-k $SCRATCH/sock -p ${PG_PORT:-19990} -h ''" start > /dev/null; }
pids() { [ -e "$MOUNT/pg/data/postmaster.pid" ] && head -1 "$MOUNT/pg/data/postmaster.pid" || true; }
trap 'p=$(pids); [ -z "$p" ] || kill -9 $p $(pgrep -P "$p") 2>/dev/null || true' EXIT
cd /
run "$bin/initdb" -D "$MOUNT/pg/data" --data-checksums -A trust > "$SCRATCH/initdb.log" 2>&1 || { tail -5 "$SCRATCH/initdb.log"; exit 1; }
start || { tail "$SCRATCH/log"; exit 1; }
run "$bin/pgbench" -h "$SCRATCH/sock" -p "${PG_PORT:-19990}" -i -s 5 -q postgres > "$SCRATCH/bench.log" 2>&1
rates=""
for round in 1 2 3; do
  ( run "$bin/pgbench" -h "$SCRATCH/sock" -p "${PG_PORT:-19990}" -c 4 -j 2 -T "${PG_SECONDS:-10}" -n postgres > "$SCRATCH/bench.$round" 2>&1 || true ) &
  bench=$!
  if [ $round = 3 ]; then
    wait $bench
  else
    sleep $((${PG_SECONDS:-10} / 2))
    before=$(sql "select count(*) from pgbench_history")
    postmaster=$(pids)
    kill -9 "$postmaster" $(pgrep -P "$postmaster") 2>/dev/null || true
    wait $bench
    while kill -0 "$postmaster" 2>/dev/null; do sleep 0.1; done
    rm -f "$MOUNT/pg/data/postmaster.pid"
    start || { tail "$SCRATCH/log"; exit 1; }
    [ "$(sql "select count(*) from pgbench_history")" -ge "$before" ] || { echo "commits are gone"; exit 1; }
  fi
done
sums=$(sql "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
  and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)")
[ "$sums" = t ] || { echo "the sums do not agree"; exit 1; }
rate=$(grep '^tps' "$SCRATCH/bench.3" | sed 's/ (.*//')
run "$bin/pg_ctl" -D "$MOUNT/pg/data" -w -m fast stop > /dev/null
run "$bin/pg_checksums" -D "$MOUNT/pg/data" --check > "$SCRATCH/sums.log" 2>&1 || { tail -5 "$SCRATCH/sums.log"; exit 1; }
echo "two kills, checksums and sums agree, $rate"
