-- Post prepared bodies in turn: wrk ... -s load.lua URL -- FOLDER COUNT CONTENT_TYPE [HEADER VALUE]...
local bodies, at, count = {}, 0, 0

function init(args)
   local folder, headers = args[1], { ["Content-Type"] = args[3] }
   count = tonumber(args[2])
   for index = 4, #args, 2 do headers[args[index]] = args[index + 1] end
   for index = 0, count - 1 do
      local file = assert(io.open(folder .. "/" .. index .. ".body", "rb"))
      bodies[index] = wrk.format("POST", nil, headers, file:read("*a"))
      file:close()
   end
   at = math.random(count) - 1
end

function request()
   at = (at + 1) % count
   return bodies[at]
end

function done(summary, latency, requests)
   local bad = summary.errors
   io.write(string.format(
      '{"requests": %d, "microseconds": %d, "p50_us": %d, "p99_us": %d, "failed": %d}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      bad.status + bad.connect + bad.read + bad.write + bad.timeout))
end
