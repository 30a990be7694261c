-- For wrk: sends the requests of a folder in order, again and again, and prints when each answer came, its status, and
-- the latencies.
local ffi = require("ffi")
ffi.cdef [[
   typedef struct { long seconds; long nanoseconds; } moment;
   int clock_gettime(int clock, moment *now);
]]
local now = ffi.new("moment")
local threads = {}

function setup(thread)
   threads[#threads + 1] = thread
end

function init(arguments)
   local folder, bodies = arguments[1], {}
   order, place, answers = {}, 0, {}
   for line in io.lines(folder .. "/order") do
      if not bodies[line] then
         local file = assert(io.open(folder .. "/" .. line, "rb"))
         bodies[line] = file:read("*a")
         file:close()
      end
      order[#order + 1] = bodies[line]
   end
end

function request()
   place = place % #order + 1
   return order[place]
end

function response(status)
   ffi.C.clock_gettime(1, now) -- CLOCK_MONOTONIC
   answers[#answers + 1] = string.format("%d.%09d %d", tonumber(now.seconds), tonumber(now.nanoseconds), status)
end

function done(summary, latency)
   local out, errors = io.stdout, summary.errors
   out:write("\n== summary\n", string.format("%d %d\n", summary.duration, summary.requests))
   out:write(string.format("%d %d %d %d\n", errors.connect, errors.read, errors.write, errors.timeout))
   out:write("== answers\n")
   for _, thread in ipairs(threads) do
      out:write(table.concat(thread:get("answers"), "\n"), "\n")
   end
   out:write("== latencies\n")
   for index = 1, #latency do
      local value, count = latency(index)
      out:write(string.format("%d %d\n", value, count))
   end
end
