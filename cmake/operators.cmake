# Lists the operators for csrc/operators.h: those with a cpu.h, and those with a cuda.h.
function(list_operators target csrc)
  foreach(side IN ITEMS cpu cuda)
    file(GLOB folders CONFIGURE_DEPENDS ${csrc}/*/${side}.h)
    list(TRANSFORM folders REPLACE "^.*/([^/]+)/${side}\\.h$" "use(\\1)")
    list(JOIN folders " " ${side}_operators)
  endforeach()
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/lists/operator_lists.h CONTENT
    "#define DETR_FAST_CPU_OPERATORS(use) @cpu_operators@\n#define DETR_FAST_CUDA_OPERATORS(use) @cuda_operators@\n" @ONLY)
  target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/lists)
endfunction()
