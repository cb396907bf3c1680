/* The whole C interface of the engine. */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include <engine/aio.h>
#include <engine/async.h>
#include <engine/base.h>
#include <engine/block.h>
#include <engine/external.h>
#include <engine/job.h>
#include <engine/log.h>
#include <engine/queue.h>
#include <engine/trace.h>
#include <engine/workload.h>

#endif
