#!/bin/sh
# Writes the table of docs/performance.md from the sittings in this folder.
#
#   docs/measurements/table.sh            rewrites the table
#   docs/measurements/table.sh --print    prints it
#   docs/measurements/table.sh --check    fails where docs/performance.md has another one
#
# A row of a sitting stands in any Markdown table with the nine columns
#   job | command | ours | theirs | speed | peak memory, ours | theirs | revision | date
# The table shows the jobs listed below. Of a job's sittings on one machine the newest day's counts, and of that day the one
# with the lowest speed, so that nobody chooses. Peak memory comes from the newest sitting that recorded it: either
# both processes' peaks, or ours as `0.40 of theirs`.
set -eu
cd "$(dirname "$0")"

# The jobs of the table in its order: file of the machine, job as its rows name it. At most 14.
headlines='
zen4            | full step f32, 33m, 8 x 256
zen4            | full step bf16, 33m, 8 x 256
zen4            | LoRA step bf16, rank 16, 33m, 8 x 256
zen4            | DPO step bf16, 33m, 4 pairs of 256
zen4            | full step f32, 135m, 8 x 256
zen4            | full step bf16, 135m, 8 x 256
emerald-rapids  | full step f32, 33m, 8 x 256
emerald-rapids  | full step bf16, 33m, 8 x 256
emerald-rapids  | RWKV-6 step f32, 8 x 256, against a careful loop
emerald-rapids  | RWKV-6 step bf16, 8 x 256, against a plain loop
emerald-rapids  | Mamba step f32, 1 x 256, against transformers without CUDA kernels
zen3            | full step f32, 33m, 8 x 256
zen3            | prefill of 512 tokens f32, 135m
zen3            | decoding of 128 tokens f32, 135m
'

# The table as it should be.
table() {
    echo '| job | machine | ours | theirs | speed | peak memory | revision | date |'
    echo '|---|---|---|---|---|---|---|---|'
    printf '%s\n' "$headlines" | awk -F '|' '
        function trim(text) { gsub(/^[ \t]+|[ \t]+$/, "", text); return text }
        function median(cell) { sub(/ \(.*/, "", cell); return cell }
        function mebibytes(cell) { return cell ~ /GiB/ ? cell * 1024 : cell + 0 }
        # Our peak over theirs; empty where the sitting did not record it.
        function memory(ours, theirs) {
            if (ours ~ /of theirs/) return sprintf("%.2f", ours)
            if (ours == "-" || theirs == "-") return ""
            return sprintf("%.2f", mebibytes(ours) / mebibytes(theirs))
        }
        function fail(message) { print "table.sh: " message > "/dev/stderr"; failed = 1; exit 1 }
        # Reads the sittings of one machine, once.
        function load(file,    line, cells, key, date, share) {
            if (file in machine) return
            while ((getline line < (file ".md")) > 0) {
                if (line ~ /^# /) machine[file] = substr(line, 3)
                if (split(line, cells, "|") != 11 || cells[10] !~ /[0-9]+-[0-9]+-[0-9]+/) continue
                key = file SUBSEP trim(cells[2]); date = trim(cells[10])
                if (date > newest[key] || (date == newest[key] && cells[6] + 0 < speed[key] + 0)) {
                    newest[key] = date; speed[key] = trim(cells[6])
                    row[key] = "| " median(trim(cells[4])) " | " median(trim(cells[5])) " | " median(speed[key])
                    revision[key] = trim(cells[9])
                }
                share = memory(trim(cells[7]), trim(cells[8]))
                if (share != "" && date > recorded[key]) { recorded[key] = date; peak[key] = share }
            }
            if (!(file in machine)) fail("no machine `" file ".md` with a title")
        }
        NF == 2 {
            file = trim($1); job = trim($2); key = file SUBSEP job
            load(file)
            if (!(key in row)) fail("no row `" job "` in " file ".md")
            if (++count > 14) fail("more than 14 jobs are listed")
            share = key in peak ? peak[key] : "-"
            print "| " job " | " machine[file] " " row[key] " | " share " | " revision[key] " | " newest[key] " |"
        }
        END { exit failed }'
}

# docs/performance.md with the table between its two marks.
rewritten() {
    table > "$scratch/table"
    awk -v table="$scratch/table" '
        /^<!-- table: end -->/ { inside = 0; ended = 1 }
        !inside { print }
        /^<!-- table: begin/ { inside = 1; while ((getline line < table) > 0) print line }
        END { if (!ended) { print "table.sh: docs/performance.md lacks its two marks" > "/dev/stderr"; exit 1 } }' ../performance.md
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
case "${1-}" in
    --print) table ;;
    --check)
        rewritten > "$scratch/performance.md"
        if ! diff -u ../performance.md "$scratch/performance.md"; then
            echo 'docs/performance.md is not what the sittings give; run docs/measurements/table.sh' >&2
            exit 1
        fi ;;
    '')
        rewritten > "$scratch/performance.md"
        cat "$scratch/performance.md" > ../performance.md ;;
    *)
        echo "table.sh: unknown argument \`$1\`; there are --print and --check" >&2
        exit 2 ;;
esac
