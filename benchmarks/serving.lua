-- wrk's part of `benchmarks.serving`: every request embeds a text that nobody has sent before.
-- Environment: BODIES, a file of JSON bodies with NUMBER where they become new, a line each; SEED, a number.

local bodies = {}
for line in io.lines(os.getenv("BODIES")) do
    bodies[#bodies + 1] = line
end
local seed = tonumber(os.getenv("SEED"))
local sent = 0
local headers = { ["content-type"] = "application/json" }

function request()
    sent = sent + 1
    local body = bodies[(sent - 1) % #bodies + 1]:gsub("NUMBER", tostring(seed + sent))
    return wrk.format("POST", nil, headers, body)
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        'RESULT {"requests": %d, "seconds": %.6f, "p50": %.3f, "p99": %.3f, "failed": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
